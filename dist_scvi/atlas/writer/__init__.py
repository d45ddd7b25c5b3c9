"""Writing a minified atlas: pieces of the source are encoded, then gathered into rows and leaves."""
