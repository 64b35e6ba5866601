"""The mathematics: processes, parameterizations, spaces, samplers, regions and guidance. Knows no Lightning."""
