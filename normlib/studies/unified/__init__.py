"""Chapter 5, beyond batch norm: the ten normalizers of Lubana, Dick and Tanaka (2021), and three properties of each."""
