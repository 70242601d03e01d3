package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// scratch is the folder of the new root that holds the overlays' layers.
const scratch = ".sandbox"

// enter assembles the spec's file system and makes it this process's root.
// The process must already be alone in its mount namespace.
func enter(spec Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	plan, err := newPlan(spec, "/")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", spec.Root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	// Unbindable, for a folder that contains it is bound into it.
	if err := unix.Mount("", spec.Root, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("making the root unbindable: %w", err)
	}
	if err := os.Chdir(spec.Root); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := mirror(plan.overlays); err != nil {
		return err
	}
	// Overlays cannot have their layers on an unbindable mount.
	if err := unix.Mount("", spec.Root, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the root bindable: %w", err)
	}
	for name := range plan.overlays {
		if err := overlay(name); err != nil {
			return fmt.Errorf("overlaying /%s: %w", name, err)
		}
	}
	for _, m := range plan.mounts {
		if err := mount(spec.Root, m); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Target, err)
		}
	}
	if spec.Workdir != "" {
		workdir, err := securejoin.SecureJoin(spec.Root, spec.Workdir)
		if err != nil {
			return fmt.Errorf("resolving the working folder: %w", err)
		}
		if err := os.MkdirAll(workdir, 0o755); err != nil {
			return fmt.Errorf("creating the working folder: %w", err)
		}
	}
	return pivot()
}

// mirror fills the current folder with the machine's top-level entries, except
// those that overlays will stand for.
func mirror(overlays map[string]bool) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("reading the machine's root: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		source := filepath.Join("/", name)
		switch {
		case entry.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(source)
			if err != nil {
				return fmt.Errorf("reading the link %s: %w", source, err)
			}
			if err := os.Symlink(target, name); err != nil {
				return fmt.Errorf("linking %s: %w", source, err)
			}
		case !entry.IsDir(), overlays[name]:
		default:
			if err := os.Mkdir(name, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(source, name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("binding %s: %w", source, err)
			}
		}
	}
	return nil
}

// overlay mounts a writable view of a top-level folder in the current folder;
// one that the machine does not have is simply created.
func overlay(name string) error {
	source := filepath.Join("/", name)
	info, err := os.Stat(source)
	if errors.Is(err, os.ErrNotExist) {
		return os.Mkdir(name, 0o755)
	}
	if err != nil {
		return err
	}
	upper := filepath.Join(scratch, name, "upper")
	work := filepath.Join(scratch, name, "work")
	for _, dir := range []string{upper, work, name} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(upper, info.Mode()); err != nil {
		return err
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", source, upper, work)
	return unix.Mount("overlay", name, "overlay", 0, layers)
}

// mount binds one volume into the new root.
func mount(root string, m Mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target, err := securejoin.SecureJoin(root, m.Target)
	if err != nil {
		return err
	}
	if err := createTarget(target, info.IsDir()); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s: %w", m.Source, err)
	}
	if !m.ReadOnly {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return fmt.Errorf("reading the mount's flags: %w", err)
	}
	// Flags that are set must stay set, or a user namespace is refused.
	kept := uintptr(fs.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|kept, ""); err != nil {
		return fmt.Errorf("making it read-only: %w", err)
	}
	return nil
}

// createTarget makes sure that there is something to mount on.
func createTarget(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// pivot makes the current folder the root and lets go of the old one.
func pivot() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivoting into the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detaching the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	return nil
}
