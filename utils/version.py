"""The version of the suite, which every file that it writes carries."""

VERSION = "2.0.0"
