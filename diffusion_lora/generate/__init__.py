"""From a request to a picture: `request`, `infotext` and `samplers` know no torch; `engine` draws, `grid` lays out."""
