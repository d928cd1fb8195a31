// Package analyze looks for mistakes in what configures a mesh, in a cluster, in files, or in files put on top of a cluster. It is a function of objects: what a
// finding says follows from them, or is marked as a guess. Each finding has a code of the table in codes.go, which docs/analyze.md explains.
package analyze

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Input is what is looked at.
type Input struct {
	// Cluster are the objects of a cluster: at least of the kinds of Kinds, all that there are.
	Cluster []*unstructured.Unstructured
	// Files are objects that are put on top of those, as if they were applied. Of two with one name, the later one is.
	Files []*unstructured.Unstructured
	// Whole says that nothing is missing. Then what is named and not there is said to be unknown.
	Whole bool
	// Accounts says that ServiceAccounts are among the objects, so that one that is not there is unknown if Whole holds, too.
	Accounts bool
	// Plaintext is what proxies counted without mutual TLS; nil: nobody was asked.
	Plaintext []Plaintext
	Options   authz.Options
	Now       time.Time // decides which revocations are in force
}

// Plaintext are requests and connections without mutual TLS to pods of an identity.
type Plaintext struct {
	Namespace, ServiceAccount string
	Count                     float64 // since the proxies that counted them started
}

// Severity is how bad a finding is.
type Severity string

// The severities. An error is certain not to do what its author wants; a warning probably does not; an info is worth knowing, or a guess.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Severities are all of them, the worst first.
var Severities = []Severity{Error, Warning, Info}

// AtLeast reports whether a severity is as bad as another one.
func (s Severity) AtLeast(other Severity) bool {
	return slices.Index(Severities, s) <= slices.Index(Severities, other)
}

// Basis is what a finding rests on.
type Basis string

// The bases.
const (
	FromConfiguration Basis = "configuration" // it follows from the objects
	FromTraffic       Basis = "traffic"       // proxies have counted it
	Guess             Basis = "guess"         // it is likely; the objects do not say
)

// Finding is something in an object that is worth a look.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Object   Object   `json:"object"`
	Field    string   `json:"field,omitempty"`
	Message  string   `json:"message"`
	Basis    Basis    `json:"basis"`
	Doc      string   `json:"doc"` // the section of docs/analyze.md
}

// Object names an object.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// IgnoreAnnotation, on an object, holds codes that are not to be said of it, between commas; "*" is all of them.
const IgnoreAnnotation = "bulwark.dev/analyze-ignore"

// analyzers look for one sort of mistakes each.
var analyzers = []func(*world, *report){
	unselected, strangers, rules, http, servicePorts, plaintext, headers, tokens, authorizers, modes, visibility, outside, pilot,
}

// Analyze finds what is to be said of the objects, in an order that is always the same: the worst first.
func Analyze(in Input) ([]Finding, error) {
	w, err := newWorld(in)
	if err != nil {
		return nil, err
	}
	r := &report{world: w, said: map[string]bool{}}
	r.annotations()
	for _, analyze := range analyzers {
		analyze(w, r)
	}
	slices.SortStableFunc(r.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(Severities, a.Severity), slices.Index(Severities, b.Severity)), cmp.Compare(a.Object.Namespace, b.Object.Namespace),
			cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Name, b.Object.Name), cmp.Compare(a.Code, b.Code), compareFields(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
	return r.findings, nil
}

// compareFields orders fields by their text, and indexes in them by their size: a shorter one with the same beginning is smaller.
func compareFields(a, b string) int {
	as, bs := strings.Split(a, "["), strings.Split(b, "[")
	for i := range min(len(as), len(bs)) {
		an, _, _ := strings.Cut(as[i], "]")
		bn, _, _ := strings.Cut(bs[i], "]")
		if c := cmp.Or(cmp.Compare(len(an), len(bn)), cmp.Compare(as[i], bs[i])); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(as), len(bs))
}

// report collects findings.
type report struct {
	world    *world
	findings []Finding
	said     map[string]bool
}

// say adds a finding, unless its object's annotation has it left out or it has been said.
func (r *report) say(code string, o Object, field, format string, args ...any) {
	r.add(code, "", o, field, FromConfiguration, format, args...)
}

// sayIf says it if something is certain; if not, it is a guess.
func (r *report) sayIf(certain bool, code string, o Object, field, format string, args ...any) {
	basis := FromConfiguration
	if !certain {
		basis = Guess
	}
	r.add(code, "", o, field, basis, format, args...)
}

// guess adds a finding that the objects do not prove.
func (r *report) guess(code string, o Object, field, format string, args ...any) {
	r.add(code, "", o, field, Guess, format, args...)
}

// add adds a finding of a severity, that of the code if it is empty.
func (r *report) add(code string, severity Severity, o Object, field string, basis Basis, format string, args ...any) {
	c := Codes[slices.IndexFunc(Codes, func(c Code) bool { return c.Code == code })]
	f := Finding{Code: code, Severity: cmp.Or(severity, c.Severity), Title: c.Title, Object: o, Field: field, Message: fmt.Sprintf(format, args...), Basis: basis, Doc: c.Doc()}
	if basis == Guess {
		f.Severity = Info
	}
	key := strings.Join([]string{f.Code, f.Object.String(), f.Field, f.Message}, "\x00")
	if r.said[key] || r.world.ignored(o, code) {
		return
	}
	r.said[key] = true
	r.findings = append(r.findings, f)
}

// annotations says which codes are ignored that there are not.
func (r *report) annotations() {
	for _, o := range r.world.objects {
		for _, code := range ignoredCodes(o) {
			if code != "*" && !Known(code) {
				r.say(UnknownCode, objectOf(o), "metadata.annotations["+IgnoreAnnotation+"]", "there is no code %q; codes are BW0101 and so on, or * for all, with commas between them", code)
			}
		}
	}
}

func ignoredCodes(o *unstructured.Unstructured) (out []string) {
	for _, code := range strings.Split(o.GetAnnotations()[IgnoreAnnotation], ",") {
		if code = strings.TrimSpace(code); code != "" {
			out = append(out, code)
		}
	}
	return out
}

func objectOf(o *unstructured.Unstructured) Object {
	return Object{o.GetKind(), o.GetNamespace(), o.GetName()}
}

// distinct are names without those that are there before, in their order.
func distinct(names []string) (out []string) {
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// some lists names, as many as are read.
func some(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
