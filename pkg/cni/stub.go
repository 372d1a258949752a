package cni

import "context"

type Manager struct{ opts Options }

func New(o Options) (*Manager, error)                { return nil, nil }
func (m *Manager) Ensure(ctx context.Context) error  { return nil }
func (m *Manager) Ready(ctx context.Context) error   { return nil }
func (m *Manager) Networks() []Network               { return nil }
func (m *Manager) Creating() (done func())           { return func() {} }
func (m *Manager) Repair(ctx context.Context) error  { return nil }
func (m *Manager) Cleanup(ctx context.Context) error { return nil }
func (m *Manager) GC(ctx context.Context, live LiveFunc) (Report, error) {
	return Report{}, nil
}
