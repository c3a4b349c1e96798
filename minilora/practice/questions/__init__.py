"""Interview questions, in English and Chinese: questions()["B1"].

A topic is a file here, a_definition.toml and so on: its title, and a table for each question. A check is a function in
checks/, which computes what decides and raises AssertionError if the answer is wrong.
"""

from .catalogue import Question, questions, topics
from .checks import checks, run_check
