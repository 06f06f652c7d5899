"""The RadixAttention runtime. Importing this package is light: torch comes with ``engine`` and the modules it needs."""
