package images

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// secretEntries are the credentials in the pull secrets of a pod, the most
// specific first. Secrets of other types hold none.
func secretEntries(secrets []*v1.Secret) (all []entry, err error) {
	for _, s := range secrets {
		var data []byte
		switch {
		case s.Type == v1.SecretTypeDockerConfigJson:
			data = s.Data[v1.DockerConfigJsonKey]
		case s.Type == v1.SecretTypeDockercfg && len(s.Data[v1.DockerConfigKey]) > 0:
			data = fmt.Appendf(nil, `{"auths":%s}`, s.Data[v1.DockerConfigKey])
		}
		if len(data) == 0 {
			continue
		}
		entries, _, err := parseConfig(data)
		if err != nil {
			return nil, fmt.Errorf("image pull secret %s/%s: %w: %w", s.Namespace, s.Name, err, errdefs.ErrInvalid)
		}
		all = append(all, entries...)
	}
	slices.SortStableFunc(all, compareEntries)
	return all, nil
}

// credentials are what the image of a pod may be pulled with: those of its pull
// secrets, then the node's. missing names the secrets that are not there.
func (m *Manager) credentials(p *v1.Pod, ref string) (auths []runtime.Auth, missing []string, err error) {
	if p != nil && m.opts.PullSecrets != nil {
		var secrets []*v1.Secret
		secrets, missing = m.opts.PullSecrets(p)
		entries, err := secretEntries(secrets)
		if err != nil {
			return nil, missing, err
		}
		auths = matching(entries, ref)
	}
	if m.opts.Credentials == nil {
		return auths, missing, nil
	}
	node, err := m.opts.Credentials.Lookup(ref)
	if err != nil && len(auths) == 0 {
		return nil, missing, err
	}
	for _, a := range node {
		if !slices.Contains(auths, a) {
			auths = append(auths, a)
		}
	}
	return auths, missing, nil
}
