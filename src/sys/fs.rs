//! File system calls that change something, each one effect.
