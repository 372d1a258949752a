package server

import (
	"io"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// remote is what kubectl and every operator is made of, over TCP.
func remote(t *testing.T) (*started, *rest.Config) {
	t.Helper()
	o := tlsFiles(t)
	s := start(t, func(all *Options) { all.TCP = o })
	ca, err := os.ReadFile(o.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	return s, &rest.Config{
		Host: "https://" + s.Addr(kindTLS).String(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON},
		QPS:           -1, // no limit of the client's
	}
}

func clientset(t *testing.T, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	cs, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

// typed is the pod that clients send in this file.
func typed(name string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "app", Image: "example.org/app:1"}}},
	}
}

// TestClientGo goes through a pod's life with the Kubernetes client.
func TestClientGo(t *testing.T) {
	s, config := remote(t)
	cs, ctx := clientset(t, config), deadline(t)
	pods := cs.CoreV1().Pods("default")

	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	event := func(want watch.EventType) *v1.Pod {
		t.Helper()
		e, ok := <-w.ResultChan()
		p, isPod := e.Object.(*v1.Pod)
		if !ok || e.Type != want || !isPod || p.Name != "web" {
			t.Fatalf("event %s of %+v, want %s of web", e.Type, e.Object, want)
		}
		return p
	}

	created, err := pods.Create(ctx, typed("web"), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil || created.UID == "" || created.Spec.RestartPolicy != v1.RestartPolicyAlways {
		t.Fatalf("create: %+v, %v", created, err)
	}
	event(watch.Added)
	got, err := pods.Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got.Spec.Containers[0].Image = "example.org/app:2"
	updated, err := pods.Update(ctx, got, metav1.UpdateOptions{})
	if err != nil || updated.Generation != 2 {
		t.Fatalf("update: %+v, %v", updated, err)
	}
	if p := event(watch.Modified); p.Spec.Containers[0].Image != "example.org/app:2" {
		t.Errorf("the watch shows image %s", p.Spec.Containers[0].Image)
	}
	_, err = pods.Update(ctx, got, metav1.UpdateOptions{})
	wantErr(t, "update of an old version", err, apierrors.IsConflict)
	for _, patch := range []struct {
		media types.PatchType
		body  string
	}{
		{types.JSONPatchType, `[{"op":"add","path":"/metadata/labels/a","value":"1"}]`},
		{types.MergePatchType, `{"metadata":{"labels":{"b":"2"}}}`},
		{types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"app","image":"example.org/app:3"}]}}`},
	} {
		if _, err := pods.Patch(ctx, "web", patch.media, []byte(patch.body), metav1.PatchOptions{}); err != nil {
			t.Errorf("%s: %v", patch.media, err)
		}
		event(watch.Modified)
	}
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "a=1,b=2", FieldSelector: "metadata.name=web", Limit: 500})
	if err != nil || len(list.Items) != 1 || list.Items[0].Spec.Containers[0].Image != "example.org/app:3" {
		t.Errorf("list: %+v, %v", list, err)
	}

	s.logged(t, "web", "app", 0, "stdout:hello")
	s.runs(t, "web", running(), 0, v1.ContainerState{})
	event(watch.Modified)
	if text, err := pods.GetLogs("web", &v1.PodLogOptions{TailLines: new(int64(1))}).DoRaw(ctx); err != nil || string(text) != "hello\n" {
		t.Errorf("log %q, %v", text, err)
	}
	if err := pods.Delete(ctx, "web", *metav1.NewDeleteOptions(0)); err != nil {
		t.Error(err)
	}
	event(watch.Modified)
	s.finish(t, "web")
	event(watch.Deleted)
	wantErr(t, "delete again", pods.Delete(ctx, "web", metav1.DeleteOptions{}), apierrors.IsNotFound)
}

// TestClientGoErrors: the client knows what went wrong.
func TestClientGoErrors(t *testing.T) {
	_, config := remote(t)
	ctx, pods := deadline(t), clientset(t, config).CoreV1().Pods("default")
	if _, err := pods.Create(ctx, typed("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := pods.Create(ctx, typed("web"), metav1.CreateOptions{})
	wantErr(t, "create again", err, apierrors.IsAlreadyExists)
	_, err = pods.Create(ctx, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "Bad"}}, metav1.CreateOptions{})
	wantErr(t, "create a bad one", err, apierrors.IsInvalid)
	if cause, ok := apierrors.StatusCause(err, metav1.CauseTypeFieldValueRequired); !ok || cause.Field != "spec.containers" {
		t.Errorf("causes of %v: %+v", err, cause)
	}
	if dry, err := pods.Create(ctx, typed("dry"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || dry.UID == "" {
		t.Errorf("dry run: %v", err)
	}
	_, err = pods.Get(ctx, "dry", metav1.GetOptions{})
	wantErr(t, "get what was a dry run", err, apierrors.IsNotFound)
	wantErr(t, "delete another", pods.Delete(ctx, "web", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}), apierrors.IsConflict)
	_, err = pods.Watch(ctx, metav1.ListOptions{FieldSelector: "spec.unknown=x"})
	wantErr(t, "watch by an unknown field", err, apierrors.IsBadRequest)
	_, err = pods.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"hostNetwork":true}}`), metav1.PatchOptions{})
	wantErr(t, "patch what may not change", err, apierrors.IsInvalid)
	config.BearerToken = "wrong"
	_, err = clientset(t, config).CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	wantErr(t, "a wrong token", err, apierrors.IsUnauthorized)
}

func wantErr(t *testing.T, what string, err error, is func(error) bool) {
	t.Helper()
	if !is(err) {
		t.Errorf("%s: %v (reason %q)", what, err, apierrors.ReasonForError(err))
	}
}

func TestClientGoDiscovery(t *testing.T) {
	_, config := remote(t)
	d := memory.NewMemCacheClient(clientset(t, config).Discovery())
	if v, err := d.ServerVersion(); err != nil || v.Major != "1" {
		t.Errorf("version %+v, %v", v, err)
	}
	_, lists, err := d.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	for _, l := range lists {
		for _, r := range l.APIResources {
			found += " " + l.GroupVersion + "/" + r.Name
		}
	}
	for _, want := range []string{"v1/events", "v1/pods", "v1/pods/exec", "v1/pods/log", "v1/services", "v1/services/status", "discovery.k8s.io/v1/endpointslices"} {
		if !strings.Contains(found+" ", " "+want+" ") {
			t.Errorf("resources%s, want %s", found, want)
		}
	}
	paths, err := d.OpenAPIV3().Paths()
	if err != nil || paths["api/v1"] == nil {
		t.Fatalf("paths %v, %v", paths, err)
	}
	if doc, err := paths["api/v1"].Schema(runtime.ContentTypeJSON); err != nil || !strings.Contains(string(doc), "fieldValidation") {
		t.Errorf("document %s, %v", doc, err)
	}
}

// TestInformer: the cache that every controller is built on fills and follows, in
// either encoding.
func TestInformer(t *testing.T) {
	for _, media := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(media, func(t *testing.T) { testInformer(t, media) })
	}
}

func testInformer(t *testing.T, media string) {
	s, config := remote(t)
	config.ContentType = media
	ctx := deadline(t)
	s.create(t, "old", "")
	factory := informers.NewSharedInformerFactory(clientset(t, config), 0)
	informer := factory.Core().V1().Pods().Informer()
	seen := make(chan string, 16)
	note := func(what string) func(any) {
		return func(o any) { seen <- what + " " + o.(*v1.Pod).Name }
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: note("add"), DeleteFunc: note("delete"), UpdateFunc: func(_, now any) { note("update")(now) },
	}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	factory.Start(stop)
	defer factory.Shutdown()
	defer close(stop)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("the cache does not fill")
	}
	s.create(t, "web", "")
	s.status(t, "web", phase(v1.PodRunning))
	s.call(t, "DELETE", podsPath+"/old?gracePeriodSeconds=0", "").code(200)
	s.finish(t, "old")
	for _, want := range []string{"add old", "add web", "update web", "update old", "delete old"} {
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("nothing is seen of %s", want)
		}
	}
}

// TestPodLogStream reads a followed log as `kubectl logs -f` does.
func TestPodLogStream(t *testing.T) {
	s, config := remote(t)
	s.create(t, "web", "")
	s.logged(t, "web", "app", 0, "stdout:one")
	s.runs(t, "web", running(), 0, v1.ContainerState{})
	r, err := clientset(t, config).CoreV1().Pods("default").GetLogs("web", &v1.PodLogOptions{Follow: true}).Stream(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.logged(t, "web", "app", 0, "stderr:two")
	s.runs(t, "web", ended(0, "Completed"), 0, v1.ContainerState{})
	if all, err := io.ReadAll(r); err != nil || string(all) != "one\ntwo\n" {
		t.Errorf("%q, %v", all, err)
	}
}
