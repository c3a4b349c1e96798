"""A part of an exercise: one function that the learner writes, and what its results are compared with.

    Gradient    a problem of verify/problems/ grades it, and diagnose names the mistakes
    Value       a function of the library or of the exercise gives the true values; the exercise lists the mistakes
    ValueAndGradients   a Value with a dict of gradients after it
    Predicted   a Value without arguments: it never says what the value must be
    Graded      a function of the exercise grades it by itself

All are checked in one order. The function must exist and take the arguments. Then, in every case, it must not raise; it
must return the right number of results in the right shapes, leave its arguments as they are (except those that it is
meant to change), return finite float64, and the same when called again. Then the values are compared. The rules are
tried last, and only if every value is right.
"""

from .gradient import Gradient
from .part import Checked, Graded, Mistake, Part, Picture, Rule, right
from .refusals import Function, Refused, Tensors, equal, in_words, line_of, refuse
from .value import Predicted, Value, ValueAndGradients, same
