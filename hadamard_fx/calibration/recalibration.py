"""A hook for training loops: calibrate again from time to time, and compile again where another decision comes out."""
