// Stands in for zarrita, which reads Zarr stores over a network: brats' pages have neither.
export {};
