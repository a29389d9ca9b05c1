"""The claims of HRSAM and BA-SAM in miniature, on models trained here."""
