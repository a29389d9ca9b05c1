"""From a picture and prompts to masks at the size of the picture."""
