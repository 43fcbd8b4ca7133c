// Package bulkhead is the root of the module. It holds no code, only the tests that keep the repository's own rules:
// which way imports point, that core is pure, that every package says what it is for. See docs/architecture.md.
package bulkhead
