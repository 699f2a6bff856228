"""From a request to a picture: `engine` draws, `grid` lays out; `request`, `infotext`, `wire` know no torch."""
