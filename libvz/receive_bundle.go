//go:build !lean

package libvz

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// makeBundle makes the bundle for what comes, which the journal names already.
func (r *reception) makeBundle(config []byte) error {
	if err := os.Mkdir(r.bundle, 0o700); err != nil {
		r.entry.Operation.Migration.Bundle = "" // that one is another's
		return err
	}
	if err := store.WriteFile(filepath.Join(r.bundle, arrivalMark), []byte(r.offer.Token), 0o600); err != nil {
		return err
	}
	dirs := []string{r.rootPlace()}
	for _, n := range r.missing {
		dirs = append(dirs, filepath.Join(r.bundle, templateName(n)))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return store.WriteFile(filepath.Join(r.bundle, "config.json"), config, 0o600)
}

// rewriteConfig fits a config.json to this host: the root file system is in the
// bundle, the templates of an overlay where layers says, the cgroup where we put it.
func rewriteConfig(data []byte, shared bool, cgroup, layers string) ([]byte, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	set := func(section, key string, value any) error {
		fields := map[string]json.RawMessage{}
		if raw := config[section]; raw != nil {
			if err := json.Unmarshal(raw, &fields); err != nil {
				return fmt.Errorf("%s: %w", section, err)
			}
		}
		var err error
		if fields[key], err = json.Marshal(value); err != nil {
			return err
		}
		config[section], err = json.Marshal(fields)
		return err
	}
	if !shared {
		if err := set("root", "path", "rootfs"); err != nil {
			return nil, err
		}
	}
	if layers != "" && !shared {
		if err := set("annotations", annotationOverlay, layers); err != nil {
			return nil, err
		}
	}
	if cgroup != "" {
		if err := set("linux", "cgroupsPath", cgroup); err != nil {
			return nil, err
		}
	}
	return json.MarshalIndent(config, "", "\t")
}
