// Package configs holds the YAML recipes and the code that loads, validates
// and explains them. A value comes from the defaults, the file, the
// environment (UADT_SECTION_KEY) or --set, the later winning; where it came
// from is remembered. All errors of a file are reported at once, with file and
// line, and an unknown key suggests the nearest known one.
//
// Every key is a field below with its class, unit, range and meaning in tags;
// nothing else in the program reads a file of settings. The package opens no
// model, data set or connection, so that a dry run stays cheap.
package configs
