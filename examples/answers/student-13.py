# Another course's homework, handed in by mistake.
# %% text
# # Homework 3: Penguins
#
# Due Friday. Please fill in the cells below and do not change their names.
# %% import
import pandas as pd
import matplotlib.pyplot as plt
%matplotlib inline
# %% load
df = pd.read_csv("penguins.csv")
df.head()
# %% q1
def mean_mass(df, species):
    """Mean body mass (g) of one species."""
    return df.loc[df["species"] == species, "body_mass_g"].mean()
# %% q1_test
assert round(mean_mass(df, "Adelie")) == 3701
# %% q2
def attention(df):
    """Rows that need attention: something is missing in them."""
    return df[df.isna().any(axis=1)]
# %% q2_test
assert len(attention(df)) == 11
# %% q3
df.plot.scatter(x="flipper_length_mm", y="body_mass_g", alpha=0.5)
plt.show()
