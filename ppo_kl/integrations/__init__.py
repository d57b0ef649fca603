"""These objectives in other people's trainers. Each module loads its own library when it is imported, and no other."""
