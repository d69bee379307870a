"""The loaders of the forms that come with the package: files that stand alone, see `forms.Form.load`."""
