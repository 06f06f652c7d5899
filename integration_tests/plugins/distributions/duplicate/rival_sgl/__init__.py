"""Of the tests of the plugin host."""
