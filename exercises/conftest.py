"""`pytest` in this folder checks every exercise, one test for each result."""

from minilora.practice.pytest_files import pytest_collect_file
