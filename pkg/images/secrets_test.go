package images

import (
	"encoding/base64"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func login(user string) string {
	return fmt.Sprintf(`{"auth":%q}`, base64.StdEncoding.EncodeToString([]byte(user+":pass")))
}

func pullSecret(name, key, data string, kind v1.SecretType) *v1.Secret {
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Type: kind, Data: map[string][]byte{key: []byte(data)}}
}

// TestPullSecrets: of all of a pod's secrets the most specific entry comes
// first, whichever secret it is in; the node's own come last.
func TestPullSecrets(t *testing.T) {
	secrets := []*v1.Secret{
		pullSecret("a", v1.DockerConfigJsonKey, `{"auths":{"r.example.org":`+login("host")+`,"*.example.org":`+login("glob")+`}}`, v1.SecretTypeDockerConfigJson),
		pullSecret("b", v1.DockerConfigKey, `{"https://r.example.org/v2/team":`+login("team")+`,"other.org":`+login("other")+`}`, v1.SecretTypeDockercfg),
		pullSecret("c", "token", "x", v1.SecretTypeOpaque),
	}
	m, err := New(Options{Runtime: newRegistry(t), PullSecrets: func(*v1.Pod) ([]*v1.Secret, []string) { return secrets, []string{"gone"} }})
	if err != nil {
		t.Fatal(err)
	}
	users := func(ref string) (names []string) {
		t.Helper()
		auths, missing, err := m.credentials(&v1.Pod{}, ref)
		if err != nil || fmt.Sprint(missing) != "[gone]" {
			t.Fatalf("missing %q, %v", missing, err)
		}
		for _, a := range auths {
			names = append(names, a.Username)
		}
		return names
	}
	for ref, want := range map[string]string{
		"r.example.org/team/app:1": "[team host glob]", "r.example.org/app:1": "[host glob]", "s.example.org/app:1": "[glob]", "docker.io/library/app:1": "[]",
	} {
		if got := fmt.Sprint(users(ref)); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	secrets = append(secrets, pullSecret("broken", v1.DockerConfigJsonKey, `{`, v1.SecretTypeDockerConfigJson))
	if _, _, err := m.credentials(&v1.Pod{}, "r.example.org/app:1"); err == nil {
		t.Error("a broken secret is no error")
	}
}
