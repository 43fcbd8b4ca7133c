package policy

import (
	_ "embed"
	"slices"
)

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of one document of any kind, for editors. Whatever Parse accepts is valid
// by it, and it knows the same fields as Parse does; a test holds both. Of what Parse refuses it finds what stands in one
// field alone.
func Schema() []byte { return slices.Clone(schema) }
