"""One exercise a file: what the learner edits above the mark, how it is checked below it."""
