package policy_test

import (
	"net/netip"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
)

// equalDocuments compares documents without their positions.
var equalDocuments = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b model.Position) bool { return true }),
}
