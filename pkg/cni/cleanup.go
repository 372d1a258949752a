package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Cleanup removes the network that we wrote: what pods still hold on it, rules,
// bridges, addresses, and last the file, so that a killed Cleanup finds its
// way again. Forwarding stays on, as others rely on it. It is for a node whose
// pods have ended, and succeeds when there is nothing left to remove.
func (m *Manager) Cleanup(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	open, err := m.gate.close(ctx)
	if err != nil {
		return err
	}
	defer open()
	m.opts.MinAge = 0 // nothing is being made any more
	var errs []error
	own, err := m.own()
	if err != nil {
		errs = append(errs, err)
	}
	if own != nil {
		rep, err := m.collect(ctx, own, nil)
		errs = append(errs, err)
		if len(rep.Kept) > 0 {
			errs = append(errs, fmt.Errorf("network %s: processes still live in %v; end them and clean up again", own.list.Name, rep.Kept))
		}
	}
	m.step("collected")
	errs = append(errs, removeRules())
	m.step("rules")
	if own != nil {
		for _, b := range own.marker.bridges() {
			errs = append(errs, deleteLink(b))
		}
		m.step("bridges")
		if err := os.RemoveAll(filepath.Join(m.opts.DataDir, own.list.Name)); err != nil {
			errs = append(errs, fmt.Errorf("remove host-local's addresses: %w", err))
		}
		m.step("addresses")
	}
	errs = append(errs, m.removeLeftovers())
	if err := errors.Join(errs...); err != nil {
		return err // the file stays: it says what is left to do
	}
	if own != nil {
		if err := removeIfThere(own.file); err != nil {
			return fmt.Errorf("remove the default network: %w", err)
		}
	}
	return nil
}
