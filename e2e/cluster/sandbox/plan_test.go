package sandbox

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPlanOverlaysOnlyWhatIsMissing(t *testing.T) {
	host := t.TempDir()
	for _, dir := range []string{"etc", "run", "usr/share", "var"} {
		if err := os.MkdirAll(filepath.Join(host, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(host, "var", "run")); err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(Spec{
		Workdir: "/app/inner",
		Mounts: []Mount{
			{Target: "/etc/web/deep"}, // created in the volume above it
			{Target: "/etc/web"},
			{Target: "/usr/share"},
			{Target: "/var/run/secrets"}, // a link leads to /run
		},
	}, host)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(p.overlays)); !slices.Equal(got, []string{"app", "etc", "run"}) {
		t.Errorf("overlays %v", got)
	}
	if first, last := p.mounts[0].Target, p.mounts[len(p.mounts)-1].Target; first != "/etc/web" && last != "/etc/web/deep" {
		t.Errorf("mounts in the order %v", p.mounts)
	}
}
