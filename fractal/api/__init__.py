"""All that a plugin author may import. Modules are imported one by one; nothing here does I/O."""
