// Package image reads the file that says which program of this machine stands
// for a container image.
package image

import (
	"encoding/json"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
)

// Image is what a container image would bring along.
type Image struct {
	// Command is the image's ENTRYPOINT.
	Command []string `json:"command"`
	// Workdir is the image's WORKDIR.
	Workdir string `json:"workdir"`
	// Env is the image's ENV.
	Env map[string]string `json:"env"`
	// User is accepted for the reader's sake; everything runs as the node's user.
	User string `json:"user"`
}

// UnknownError means that a map has no program for an image.
type UnknownError struct {
	Image, Map string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("image %q is not in the image map %s", e.Image, e.Map)
}

// Map is a file that maps images to programs. It is read anew on every look-up
// so that images can be added while the cluster runs.
type Map struct {
	Path string
}

// Lookup finds an image.
func (m Map) Lookup(name string) (Image, error) {
	data, err := os.ReadFile(m.Path)
	if err != nil {
		return Image{}, fmt.Errorf("reading the image map: %w", err)
	}
	var content struct {
		Images map[string]Image `json:"images"`
	}
	if err := json.Unmarshal(data, &content); err != nil {
		return Image{}, fmt.Errorf("image map %s: %w", m.Path, err)
	}
	found, ok := content.Images[name]
	if !ok {
		return Image{}, &UnknownError{Image: name, Map: m.Path}
	}
	return found, nil
}

// CommandLine joins what the image and the container say about the command:
// the container's command replaces the image's, and args follow it.
func (i Image) CommandLine(container *corev1.Container) ([]string, error) {
	command := i.Command
	if len(container.Command) > 0 {
		command = container.Command
	}
	line := append(append([]string(nil), command...), container.Args...)
	if len(line) == 0 {
		return nil, fmt.Errorf("no command specified for container %q", container.Name)
	}
	return line, nil
}

// WorkingDir is where the container's command starts.
func (i Image) WorkingDir(container *corev1.Container) string {
	if container.WorkingDir != "" {
		return container.WorkingDir
	}
	if i.Workdir != "" {
		return i.Workdir
	}
	return "/"
}
