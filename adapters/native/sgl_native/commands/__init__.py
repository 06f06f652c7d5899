"""The subcommands of ``sgl``, one module each: ``add_parser`` declares the options and ``main`` runs it."""
