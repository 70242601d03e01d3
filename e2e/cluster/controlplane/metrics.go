package controlplane

import (
	"bytes"
	"context"
	_ "embed" // for the manifest
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/template"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/components"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// metricsManifest registers the metrics server, which runs beside the cluster.
//
//go:embed metrics-server.yaml.tmpl
var metricsManifest string

// startMetricsServer registers and starts the metrics server. It does not wait
// for metrics, which take a while.
func (s *supervisor) startMetricsServer(ctx context.Context, checks *checks) error {
	if err := until(ctx, stageTimeout, checks.namespaceReady); err != nil {
		return fmt.Errorf("waiting for the namespaces: %w", err)
	}
	manifest, err := template.New("metrics-server").Parse(metricsManifest)
	if err != nil {
		return fmt.Errorf("parsing the metrics server's manifest: %w", err)
	}
	var rendered strings.Builder
	if err := manifest.Execute(&rendered, s.claim.ports); err != nil {
		return fmt.Errorf("rendering the metrics server's manifest: %w", err)
	}
	if err := s.apply(ctx, rendered.String()); err != nil {
		return fmt.Errorf("registering the metrics server: %w", err)
	}
	if err := s.start(metricsServer, s.options.MetricsServer, metricsServerFlags(s.layout, s.claim.ports)...); err != nil {
		return err
	}
	s.report("metrics server started")
	return nil
}

// apply runs kubectl apply on a manifest.
func (s *supervisor) apply(ctx context.Context, manifest string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	kubectl := exec.CommandContext(ctx, self, components.Kubectl,
		"--kubeconfig="+s.layout.componentKubeconfig(adminName),
		"--cache-dir="+s.layout.file("certs", "kubectl-cache"),
		"apply", "--filename=-", "--validate=false")
	kubectl.Stdin = strings.NewReader(manifest)
	kubectl.Env = append(os.Environ(), proc.ClusterMarker(s.layout.dir))
	if output, err := kubectl.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(output))
	}
	return nil
}
