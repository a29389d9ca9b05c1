"""Masks in the files that other programs read and write."""
