"""What tests and third parties need."""
