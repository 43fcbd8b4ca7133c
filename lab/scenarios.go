package lab

import (
	"embed"
	"io/fs"
)

//go:embed scenarios
var embedded embed.FS

// Scenarios returns the scenarios that the program carries.
func Scenarios() fs.FS {
	sub, err := fs.Sub(embedded, "scenarios")
	if err != nil {
		panic(err) // the name is a constant
	}
	return sub
}
