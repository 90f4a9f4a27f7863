"""The local cloud: never deployed, imported by nothing in functions/ or layers/."""
