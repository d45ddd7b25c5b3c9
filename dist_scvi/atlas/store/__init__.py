"""Reading a minified atlas: manifest, arrays that are checked when first read, obs, leaves and neighbourhoods."""
