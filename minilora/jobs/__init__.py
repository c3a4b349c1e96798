"""Whole jobs, from data to a folder of results."""
