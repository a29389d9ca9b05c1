"""How good a mask is: numbers from arrays. Nothing here sees a model or a file."""
