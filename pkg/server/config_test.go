package server

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// TestClientGoConfig: configuration, and what is in no namespace, with the
// Kubernetes client.
func TestClientGoConfig(t *testing.T) {
	s, config := remote(t)
	cs, ctx := clientset(t, config), deadline(t)
	maps := cs.CoreV1().ConfigMaps("default")
	made, err := maps.Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Immutable: new(true), Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	if err != nil || made.UID == "" || made.Data["a"] != "b" {
		t.Fatalf("%+v, %v", made, err)
	}
	made.Data["a"] = "c"
	if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "data: Forbidden") {
		t.Errorf("an immutable one changed: %v", err)
	}

	secrets := cs.CoreV1().Secrets("default")
	secret, err := secrets.Create(ctx, &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"password": "hunter2"}}, metav1.CreateOptions{})
	if err != nil || string(secret.Data["password"]) != "hunter2" || secret.StringData != nil || secret.Type != v1.SecretTypeOpaque {
		t.Fatalf("%+v, %v", secret, err)
	}
	secret, err = secrets.Patch(ctx, "s", types.StrategicMergePatchType, []byte(`{"stringData":{"password":"other"}}`), metav1.PatchOptions{})
	if err != nil || string(secret.Data["password"]) != "other" {
		t.Errorf("%+v, %v", secret, err)
	}
	if list, err := secrets.List(ctx, metav1.ListOptions{FieldSelector: "type=Opaque"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%+v, %v", list, err)
	}

	spaces := cs.CoreV1().Namespaces()
	space, err := spaces.Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	if err != nil || space.Status.Phase != v1.NamespaceActive || space.Labels[v1.LabelMetadataName] != "shop" {
		t.Fatalf("%+v, %v", space, err)
	}
	classes := cs.SchedulingV1().PriorityClasses()
	if _, err := classes.Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 7}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if err := classes.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := classes.Get(ctx, "high", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}

	// What the agent wrote to a volume comes back with it, and is no wish.
	volumes := cs.CoreV1().PersistentVolumes()
	volume, err := volumes.Create(ctx, &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: v1.PersistentVolumeSpec{
		Capacity: v1.ResourceList{v1.ResourceStorage: quantity.MustParse("1Gi")}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/d"}}}}, metav1.CreateOptions{})
	if err != nil || volume.Namespace != "" {
		t.Fatalf("%+v, %v", volume, err)
	}
	rec, _ := s.store.Resource("PersistentVolume", pod.Key{Name: "v"})
	bound := rec.Object.DeepCopyObject().(*v1.PersistentVolume)
	bound.Status.Phase, bound.Spec.ClaimRef = v1.VolumeBound, &v1.ObjectReference{Namespace: "default", Name: "c", UID: "u"}
	rec.Object = bound
	if err := s.store.SetResource(rec); err != nil {
		t.Fatal(err)
	}
	if volume, err = volumes.Get(ctx, "v", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	volume.Labels = map[string]string{"a": "b"}
	if volume, err = volumes.Update(ctx, volume, metav1.UpdateOptions{}); err != nil || volume.Spec.ClaimRef == nil || volume.Status.Phase != v1.VolumeBound {
		t.Errorf("%+v, %v", volume, err)
	}
	if rec, _ = s.store.Resource("PersistentVolume", pod.Key{Name: "v"}); rec.Wanted.(*v1.PersistentVolume).Spec.ClaimRef != nil {
		t.Error("what was shown became a wish")
	}
	if err := volumes.Delete(ctx, "v", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// TestSecretTable: a table has no contents, and no object with them.
func TestSecretTable(t *testing.T) {
	f := newFixture(t, nil)
	f.call(t, "POST", "/api/v1/namespaces/default/secrets", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"stringData":{"password":"hunter2"}}`).code(201)
	r := f.call(t, "GET", "/api/v1/secrets", "", "Accept", tableJSON).code(200)
	if body := r.Body.String(); strings.Contains(body, "aHVudGVyMg") || !strings.Contains(body, `"cells":["s","Opaque","1"`) {
		t.Error(body)
	}
}
