"""What of the documentation is made by a script: tables from committed numbers, the reference."""
