package dataplane

import (
	"reflect"
	"testing"
)

// Lines as perf 6 prints them.
func TestSamplesAreOfAProcessAndAPlace(t *testing.T) {
	got, err := read([]byte(`21185  ffffffff81f5d66f ([kernel.kallsyms])
    7      55d0c0a01234 (/root/.cache/bulwark/envoy-1.40.0/envoy)
    7      7f0000001234 (/usr/lib/x86_64-linux-gnu/libc.so.6)
    7      7ffc12345678 ([vdso])
    7      3a5f00001234 ([anon:v8])
    7      3a5f00005678 (//anon)
    7  ffffffff81b9764c ([kernel.kallsyms])
`))
	want := profile{21185: {inKernel: 1}, 7: {inEnvoy: 1, inLibrary: 2, inSandbox: 2, inKernel: 1}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := read([]byte("no process\n")); err == nil {
		t.Error("what is no sample was read")
	}
}
