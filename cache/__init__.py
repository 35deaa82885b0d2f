"""The cache floor: pure decisions and bytes. No processes, no native code, no actors."""
