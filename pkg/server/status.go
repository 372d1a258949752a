package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// retryAfter is told to clients whose request may succeed later, in seconds.
const retryAfter = 1

func resource(name string) schema.GroupResource {
	return schema.GroupResource{Group: kindNamed(name).group(), Resource: name}
}

// toStatus translates any error into the Status that kube-apiserver answers
// with in the same case. Resource and name are what the request was about.
func toStatus(err error, what, name string) metav1.Status {
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		return api.Status()
	}
	var s *apierrors.StatusError
	res := resource(what)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		s = apierrors.NewNotFound(res, name)
		s.ErrStatus.Message = withDetail(s.ErrStatus.Message, err)
	case errors.Is(err, errdefs.ErrExists):
		s = apierrors.NewAlreadyExists(res, name)
	case errors.Is(err, errdefs.ErrConflict):
		s = apierrors.NewConflict(res, name, err)
	case errors.Is(err, errdefs.ErrInvalid):
		s = apierrors.NewInvalid(schema.GroupKind{Group: kindNamed(what).group(), Kind: kindOf(what)}, name, nil)
		s.ErrStatus.Message = err.Error()
		if what != "" {
			s.ErrStatus.Message = fmt.Sprintf("%s %q is invalid: %v", kindOf(what), name, err)
		}
	case errors.Is(err, errdefs.ErrExpired):
		s = apierrors.NewResourceExpired(err.Error())
	case errors.Is(err, errdefs.ErrTransient), errors.Is(err, errdefs.ErrUnavailable):
		s = apierrors.NewServiceUnavailable(err.Error())
		s.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: retryAfter}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		s = apierrors.NewTimeoutError(err.Error(), retryAfter)
	default:
		s = apierrors.NewInternalError(err)
	}
	return s.Status()
}

// withDetail appends what the error adds to a message that already says that
// something is not found.
func withDetail(msg string, err error) string {
	detail := strings.TrimSuffix(err.Error(), ": "+errdefs.ErrNotFound.Error())
	if detail == errdefs.ErrNotFound.Error() || strings.Contains(msg, detail) {
		return msg
	}
	return msg + ": " + detail
}

func kindOf(what string) string {
	if k := kindNamed(what); k.Name != "" {
		return k.Name
	}
	return what
}

// invalid is the 422 that names every refused field as a cause.
func invalid(kind servedKind, name string, errs []*manifest.Error) *apierrors.StatusError {
	s := apierrors.NewInvalid(schema.GroupKind{Group: kind.group(), Kind: kind.Name}, name, nil)
	var all []string
	for _, e := range errs {
		text := e.Msg
		if e.Field != "" {
			text = e.Field + ": " + e.Msg
		}
		all = append(all, text)
		s.ErrStatus.Details.Causes = append(s.ErrStatus.Details.Causes, metav1.StatusCause{
			Type: causeType(e), Message: e.Msg, Field: e.Field,
		})
	}
	text := strings.Join(all, ", ")
	if len(all) > 1 {
		text = "[" + text + "]"
	}
	s.ErrStatus.Message = fmt.Sprintf("%s %q is invalid: %s", kind.Name, name, text)
	return s
}

func causeType(e *manifest.Error) metav1.CauseType {
	switch {
	case e.Unsupported:
		return metav1.CauseTypeFieldValueNotSupported
	case isValidation(e):
		return metav1.CauseType(e.Type) // their names are the same
	}
	return metav1.CauseTypeFieldValueInvalid
}

// isValidation says that the document is a Pod, but one that may not be.
func isValidation(e *manifest.Error) bool {
	return e.Unsupported && e.Field != "kind" || e.Type != "" && e.Type != manifest.UnknownField
}

// writeError answers with a Status, in YAML when that is what was asked for.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error, what, name string) {
	st := toStatus(err, what, name)
	st.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	if st.Code == 0 {
		st.Code = http.StatusInternalServerError
	}
	if st.Code >= http.StatusInternalServerError {
		s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "code", st.Code, "err", err)
	}
	if st.Details != nil && st.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(st.Details.RetryAfterSeconds)))
	}
	f, nerr := negotiate(r, false, false)
	if nerr != nil {
		f = format{media: mediaJSON}
	}
	write(w, f, int(st.Code), &st)
}

// success is the Status of a request that has no object to show.
func success() metav1.Status {
	return metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}
}
