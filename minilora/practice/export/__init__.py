"""Exercises for a class: an nbgrader course, a Gradescope autograder, a week of LoRA. One format a file."""
