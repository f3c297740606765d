//! The raw disk keeps what it promised, loses the rest at will, and does harm where it is told to.
