// Package version knows which build of Bulkhead is running.
package version

import "runtime/debug"

// version is set by the linker; without it the module's build information speaks.
var version string

// String returns the version of this build, such as v0.1.0 or a commit.
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return info.Main.Version
}
