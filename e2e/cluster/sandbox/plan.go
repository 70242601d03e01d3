package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// plan is what has to be done to the root folder before the mounts.
type plan struct {
	// mounts are the spec's, parents first.
	mounts []Mount
	// overlays are the machine's top-level folders in which something must be
	// created, so that the sandbox needs a writable copy of them.
	overlays map[string]bool
}

// newPlan finds out which paths of the spec are missing below host, which is
// "/" except in tests.
func newPlan(spec Spec, host string) (plan, error) {
	p := plan{mounts: slices.Clone(spec.Mounts), overlays: make(map[string]bool)}
	slices.SortStableFunc(p.mounts, func(a, b Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	var resolved []string
	paths := make([]string, 0, len(p.mounts)+1)
	for _, m := range p.mounts {
		paths = append(paths, m.Target)
	}
	if spec.Workdir != "" {
		paths = append(paths, spec.Workdir)
	}
	for _, path := range paths {
		onHost, err := securejoin.SecureJoin(host, path)
		if err != nil {
			return plan{}, fmt.Errorf("resolving %s: %w", path, err)
		}
		inside := "/" + strings.Trim(strings.TrimPrefix(onHost, host), "/")
		within := slices.ContainsFunc(resolved, func(parent string) bool {
			return strings.HasPrefix(inside, parent+"/")
		})
		resolved = append(resolved, inside)
		if within {
			continue // It is created in the volume that is mounted above it.
		}
		if _, err := os.Stat(onHost); err == nil {
			continue
		}
		top, _, _ := strings.Cut(strings.TrimPrefix(inside, "/"), "/")
		p.overlays[top] = true
	}
	return p, nil
}
