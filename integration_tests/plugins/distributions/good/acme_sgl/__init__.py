"""An adapter of Acme for sgl-core. Acme is a framework of one class, so that this package can be read in a minute."""
